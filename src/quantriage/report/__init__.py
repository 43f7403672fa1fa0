"""Records to one self-contained HTML file."""

from quantriage.report.render import render

__all__ = ["render"]
