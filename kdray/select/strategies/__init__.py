"""The strategies that come with kdray. Each module registers its own strategies."""
