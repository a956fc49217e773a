"""Preservation put to the test: methods compared at matched expressivity, predicted against measured forgetting."""
