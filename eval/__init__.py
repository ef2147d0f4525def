"""Judges, metrics and the report: what of a performance survived a conversion.

Works on audio files alone and needs none of the models. `vivavoce report --help` measures folders.
"""
