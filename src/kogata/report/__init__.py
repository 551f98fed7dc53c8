"""Reports: plain data, a terminal table, and one offline HTML page."""
