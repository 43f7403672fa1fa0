"""quantriage: find where a quantized language model lost its quality, fix it, and prove the fix."""

__version__ = "0.1.0"
