"""Which backend Keras runs on, found before anything else of Keras is touched."""

from outeropt.errors import ConfigError


_KNOWN = ("jax", "torch")


def _backend() -> str:
    try:
        import keras

        found = keras.backend.backend()
    except ModuleNotFoundError as missing:
        # Keras without a setting asks for TensorFlow, whether it is there or not.
        if missing.name != "tensorflow":
            raise
        found = missing.name
    if found not in _KNOWN:
        raise ConfigError(
            f"outeropt.keras runs on Keras's backends {' and '.join(_KNOWN)}, not on {found}; "
            "set KERAS_BACKEND=jax or KERAS_BACKEND=torch before Keras is imported."
        )
    return found


BACKEND = _backend()
"""`"jax"` or `"torch"`."""
