"""Data sets, images, texts, tokenizers and samples."""
