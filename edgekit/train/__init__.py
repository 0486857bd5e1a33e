"""The training loop and losses that every pass which trains goes through."""
