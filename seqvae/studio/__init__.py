"""The local web page: music, sentences, the map of styles and anomalies, to be played with in a browser.

server.py puts it together. The only package that knows the web framework; nothing imports it but the verb `studio`.
"""
