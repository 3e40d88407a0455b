"""The formats of a leaderboard: each a function of its groups."""
