"""What asks for points and hears their scores: one sibling file for each way to choose them."""
