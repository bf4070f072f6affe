"""The page of a run: one offline HTML file."""
