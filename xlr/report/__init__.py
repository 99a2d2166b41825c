"""How findings are shown: a page, Markdown, tables on the terminal."""
