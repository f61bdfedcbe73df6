"""The study of one-pass tuning: its problems and methods, published numbers, and tables."""
