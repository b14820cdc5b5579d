"""TensorRT: which backend, the plugin library, optimisation profiles, token sizes, and the builder in its own
process."""
