"""Measurements that take long: run with `python -m benchmarks [name ...]`. Each writes
docs/evidence/<name>.json.
"""
