"""What a person writes: recipes and device files, read with the line of every mistake."""
