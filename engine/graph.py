"""A computation graph to look at: as text, as Graphviz DOT, or as an SVG picture.

Each node shows its number (data) and its gradient (grad), and each edge its slope: the local
derivative of the child by the parent. A gradient is the sum, over the edges that leave a node for
its children, of child's gradient x slope; with all three in sight that can be checked by hand.

>>> a, b = Value(2.0), Value(-3.0)
>>> c = a * b
>>> d = c + a
>>> d.backward()
>>> print(to_text(d, names={"a": a, "b": b, "c": c, "d": d}))
            data       grad      slope
d             -4          1
  c           -6          1          1
    a          2         -2         -3
    b         -3          2          2
  a      (above)                     1

A Value does not know which function made it (that is all that left its derivatives behind), so
nodes have no operator on them. They bear the names they are given: `names` maps a name to a Value
or to a list or rows of them, and anything else in it is passed over, so `names=locals()` works.
The rest are v1, v2, ... in the order in which they could have been computed.

No function here recurses: a graph of any depth is no problem, but only so much can be looked at.
"""
import html

from microgpt import Value

TEXT_LIMIT = 100     # lines
PICTURE_LIMIT = 300  # nodes
DEEPEST_INDENT = 30  # levels; deeper ones stay in that column

# ---- Walking and naming --------------------------------------------------------------------------


def ancestors(root):
    """Returns all Values that root was computed from, and root, each once, parents first.

    >>> x = Value(3.0)
    >>> [node.data for node in ancestors(x * x + 1.0)]
    [3.0, 9.0, 1.0, 10.0]
    """
    if not isinstance(root, Value):
        raise TypeError(f"a graph begins at a Value, got {root!r}")
    order, seen, stack = [], set(), [(root, False)]
    while stack:
        node, parents_done = stack.pop()
        if parents_done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack += [(parent, False) for parent in reversed(node.parents)]
    return order


def label_nodes(nodes, names):
    """Returns id of a node -> its name, as the module's docstring says; the first name counts."""
    labels, stack = {}, [(str(name), item) for name, item in reversed(list((names or {}).items()))]
    while stack:
        name, item = stack.pop()
        if isinstance(item, Value):
            labels.setdefault(id(item), name)
        elif isinstance(item, (list, tuple)):
            stack += [(f"{name}[{i}]", item[i]) for i in reversed(range(len(item)))]
    count = 0
    for node in nodes:
        if id(node) not in labels:
            count += 1
            labels[id(node)] = f"v{count}"
    return labels


def limited(root, limit, what):
    """Returns ancestors(root), or raises ValueError if they are more than limit."""
    nodes = ancestors(root)
    if len(nodes) > limit:
        raise ValueError(f"the graph has {len(nodes):,} nodes and {what} shows up to {limit:,}: "
                         "give a Value nearer to the leaves, or a higher limit")
    return nodes


def depths(nodes):
    """Returns id of a node -> the longest way to it from a leaf, in edges."""
    depth = {}
    for node in nodes:
        depth[id(node)] = 1 + max((depth[id(parent)] for parent in node.parents), default=-1)
    return depth


# ---- Text ----------------------------------------------------------------------------------------


def to_text(root, names=None, limit=TEXT_LIMIT):
    """Returns the graph as an indented list, root first, below each node what it was made from.

    A node that has several children is written out below the first and is "(above)" below the
    others. After `limit` lines the rest is counted only. Slopes: see the module's docstring.
    """
    nodes = ancestors(root)
    labels = label_nodes(nodes, names)
    lines, shown, stack = [], set(), [(root, 0, "")]
    while stack and len(lines) < limit:
        node, depth, slope = stack.pop()
        name = "  " * min(depth, DEEPEST_INDENT) + labels[id(node)]
        if id(node) in shown:
            lines.append((name, "(above)", "", slope))
            continue
        shown.add(id(node))
        lines.append((name, f"{node.data:.4g}", f"{node.grad:.4g}", slope))
        stack += [(parent, depth + 1, f"{local:.4g}") for parent, local
                  in reversed(list(zip(node.parents, node.local_grads)))]
    lines = [("", "data", "grad", "slope"), *lines]
    width = max(len(line[0]) for line in lines)
    text = [f"{name:<{width}} {data:>10} {grad:>10} {slope:>10}".rstrip()
            for name, data, grad, slope in lines]
    if len(shown) < len(nodes):
        text.append(f"... and {len(nodes) - len(shown):,} more nodes (limit={limit})")
    return "\n".join(text)


# ---- DOT -----------------------------------------------------------------------------------------


def to_dot(root, names=None, limit=PICTURE_LIMIT):
    """Returns the graph in the language of Graphviz: `dot -Tpng graph.dot -o graph.png` draws it.

    Leaves are grey, edges run from parent to child and bear the slope. Raises ValueError for a
    graph of more than `limit` nodes.

    >>> x = Value(3.0)
    >>> y = x.relu()
    >>> y.backward()
    >>> print(to_dot(y, names={"x": x, "y": y}))
    digraph {
      rankdir=LR
      node [shape=box, style=filled, fillcolor=white]
      n0 [label="x\\ndata 3\\ngrad 1", fillcolor=lightgrey]
      n1 [label="y\\ndata 3\\ngrad 1"]
      n0 -> n1 [label="1"]
    }
    """
    nodes = limited(root, limit, "DOT")
    labels = label_nodes(nodes, names)
    ids = {id(node): f"n{i}" for i, node in enumerate(nodes)}
    lines = ["digraph {", "  rankdir=LR", "  node [shape=box, style=filled, fillcolor=white]"]
    for node in nodes:
        name = labels[id(node)].replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
        colour = "" if node.parents else ", fillcolor=lightgrey"
        lines.append(f'  {ids[id(node)]} [label="{name}\\ndata {node.data:.4g}'
                     f'\\ngrad {node.grad:.4g}"{colour}]')
    for node in nodes:
        for parent, slope in zip(node.parents, node.local_grads):
            lines.append(f'  {ids[id(parent)]} -> {ids[id(node)]} [label="{slope:.4g}"]')
    return "\n".join([*lines, "}"])


# ---- SVG -----------------------------------------------------------------------------------------

BOX_WIDTH, BOX_HEIGHT = 110, 54  # in pixels, as all that follows
COLUMN, MARGIN = 190, 20
BOX_ROW, LINE_ROW = 74, 24  # what a box takes of its column's height, and an edge passing through


def place(nodes):
    """Returns where each node and edge goes: (id of a node, column) -> middle height, and depths().

    A node's box stands in the column of its depth, so that every edge runs to the right. If it has
    children further off, its line keeps a place of its own in each column between, so that no
    edge runs behind a box. Within a column all stand in the order of the average height of what
    they come from, which keeps most edges from crossing, and columns are centred.
    """
    depth = depths(nodes)
    reach = dict(depth)  # the last column in which a node has a box or a line
    for node in nodes:
        for parent in node.parents:
            reach[id(parent)] = max(reach[id(parent)], depth[id(node)] - 1)
    heights = {}
    for column in range(max(depth.values()) + 1):
        items = []  # (height it would like, takes of the column, id)
        for i, node in enumerate(nodes):
            if depth[id(node)] == column:
                sources = [heights[id(parent), column - 1] for parent in node.parents]
                items.append((sum(sources) / len(sources) if sources else i, BOX_ROW, id(node)))
            elif depth[id(node)] < column <= reach[id(node)]:
                items.append((heights[id(node), column - 1], LINE_ROW, id(node)))
        items.sort(key=lambda item: item[0])
        top = -sum(takes for _, takes, _ in items) / 2
        for _, takes, key in items:
            heights[key, column] = top + takes / 2
            top += takes
    up = MARGIN + BOX_HEIGHT / 2 - min(heights.values())
    return {key: height + up for key, height in heights.items()}, depth


def to_svg(root, names=None, limit=PICTURE_LIMIT):
    """Returns the graph as an SVG picture that needs nothing else; any browser shows it.

    Leaves are grey and stand at the left, root at the right, slopes on the edges. Raises
    ValueError for a graph of more than `limit` nodes. To look at it:

        pathlib.Path("graph.svg").write_text(to_svg(loss), encoding="utf-8")
    """
    nodes = limited(root, limit, "SVG")
    labels = label_nodes(nodes, names)
    heights, depth = place(nodes)
    width = 2 * MARGIN + depth[id(root)] * COLUMN + BOX_WIDTH
    height = max(heights.values()) + BOX_HEIGHT / 2 + MARGIN
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
             f'viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" font-size="12">',
             '<rect width="100%" height="100%" fill="white"/>']
    for node in nodes:
        column, n = depth[id(node)], len(node.parents)
        for i, (parent, slope) in enumerate(zip(node.parents, node.local_grads), 1):
            way = [heights[id(parent), k] for k in range(depth[id(parent)], column)]
            # edges arrive one below the other, so that both of x * x are seen
            end = heights[id(node), column] + BOX_HEIGHT * (i / (n + 1) - 0.5)
            lines.append(svg_edge([*way, end], column, slope))
    for node in nodes:
        x, y = MARGIN + depth[id(node)] * COLUMN, heights[id(node), depth[id(node)]]
        lines.append(svg_box(node, labels[id(node)], x, y - BOX_HEIGHT / 2))
    return "\n".join([*lines, "</svg>"])


def svg_edge(way, column, slope):
    """Returns an edge into a column, and its slope as text: way has its height in each column."""
    x, bend = MARGIN + (column - len(way) + 1) * COLUMN, (COLUMN - BOX_WIDTH) / 2
    path = f"M{x:g} {way[0]:g}"
    for y0, y1 in zip(way, way[1:]):  # straight on behind the box, or between boxes; then a curve
        x0, x = x + BOX_WIDTH, x + COLUMN
        path += f" H{x0:g} C{x0 + bend:g} {y0:g} {x - bend:g} {y1:g} {x:g} {y1:g}"
    return (f'<path d="{path}" fill="none" stroke="#888"/><text x="{x - 4:g}" '
            f'y="{way[-1] - 3:g}" text-anchor="end" fill="#06c">{slope:.4g}</text>')


def svg_box(node, label, x, y):
    """Returns the box of a node, its upper left corner at x, y, with its name, data and grad."""
    label = html.escape(label if len(label) <= 16 else label[:13] + "...")
    fill = "white" if node.parents else "#eee"
    return (f'<g><rect x="{x:g}" y="{y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" '
            f'fill="{fill}" stroke="black"/>'
            f'<text x="{x + 8:g}" y="{y + 16:g}" font-weight="bold">{label}</text>'
            f'<text x="{x + 8:g}" y="{y + 32:g}">data {node.data:.4g}</text>'
            f'<text x="{x + 8:g}" y="{y + 47:g}">grad {node.grad:.4g}</text></g>')
