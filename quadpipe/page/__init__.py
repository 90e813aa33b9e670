"""A dataset as one HTML file that people look at: it needs no network, and runs no text of theirs.

template.html   the document, with $names where the parts below go
page.css        colors for light and dark, one column on narrow screens
page.js         draws quadtrees and mosaics at the budget of the slider
build.py        the document from its parts, and what page.js draws, as JSON
facts.py        tables and lists about the dataset, as HTML
"""
