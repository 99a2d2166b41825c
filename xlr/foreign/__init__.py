"""Texts, files and addresses from outside: how they are read, and what is refused before anything uses them."""
