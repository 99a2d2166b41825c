"""Work for the pool of workers, in pieces that are files: an interrupted stage continues with the missing ones."""
