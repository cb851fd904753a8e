"""The mathematics of learning, as pure functions over an array namespace ``xp``.

``xp`` is always the first argument. Nothing here imports a framework, keeps state, draws random numbers
(noise is data, made on the host by :mod:`.noise`) or looks at the values of an array.
"""
