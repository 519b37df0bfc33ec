"""Merging models of one base: six techniques, one file each, and recipes that combine them.

    linear, slerp                  pair 1, interpolation      one model from several
    dare, ties                     pair 2, task arithmetic    from deltas against the shared base
    franken, importance            pair 3, selection          which model a layer is taken from
    techniques, combo              names of the six, and the eight choices of one from each pair
    recipe, apply                  all numbers of a merge, and the merge itself
    groups, validity, geometry     which weight belongs where, what may not come out, distances
    pieces                         large tensors a cacheful at a time

All functions are pure: tensors in, new tensors out, nothing changed.
"""
