"""The study of one-pass tuning on regression tables: its plan, published numbers, and tables."""
