"""How fast an artifact is, and whether it became slower: measuring, statistics, verdicts and what is shown of them."""
