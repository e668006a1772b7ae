"""WaveNet: A Generative Model for Raw Audio.

x. 2016. arXiv 1609.03499.
"""
