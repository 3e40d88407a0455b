"""Charts as functions of plain data, for the leaderboard's page and for papers."""
