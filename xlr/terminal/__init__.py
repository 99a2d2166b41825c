"""What a user sees in a terminal: messages, tables, the progress of a long step."""
