"""How good a student is: by class, by its confidence, under attack, and how fast it answers."""
