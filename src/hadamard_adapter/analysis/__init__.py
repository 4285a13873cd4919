"""What runs come to: statistics over seeds and examples, and the report in Markdown, CSV and HTML."""
