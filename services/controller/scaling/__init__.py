"""How many workers each part of each pool gets: pure functions over plain data.

`deciding.decide` is the whole of it; `needs` says what the signals call for, `steadying` what holds
a change back, `budget` what is affordable, `costs` what was learnt of the workers.
"""
