"""Experiments on preservation: methods at matched expressivity, predicted against measured forgetting."""
