"""The studio, a local web page for music, sentences, the map of styles and anomalies.

server.py assembles it. No other package imports the web framework, and only the command `studio` imports this one.
"""
