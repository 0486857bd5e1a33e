"""The zoo: a family a file, networks as rows of their paper's table.

The values are import targets, so that listing names imports nothing.
"""

ZOO = {
    "mobilenet_v2": "edgekit.nets.mobilenet_v2:mobilenet_v2",
}
