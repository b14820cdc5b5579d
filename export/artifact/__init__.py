"""What an export writes: the manifest, the files that it lists, and their hashes."""
