"""The leaderboard's formats: for people, for papers, for programs, and as a page."""
