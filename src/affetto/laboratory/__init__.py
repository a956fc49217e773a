"""Methods of preservation compared: many runs of the same clips, at matched expressivity"""
