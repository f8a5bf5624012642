"""The drawings of the report, each a function from plain records to a piece of SVG."""
