"""Files in and out: what may be read, what may be replaced, folders to work in."""
