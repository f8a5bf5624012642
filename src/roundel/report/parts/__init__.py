"""What stands on a page, as plain words and rows: each file answers one question of the reader."""
