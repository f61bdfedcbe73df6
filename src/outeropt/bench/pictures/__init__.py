"""Archives and leaderboards as figures and as one interactive page."""
