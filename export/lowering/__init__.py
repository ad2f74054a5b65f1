"""One model to what a target takes; each lowered file is proven against the original."""
