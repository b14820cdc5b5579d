"""What is known of the kernels without a GPU, and what measures them on one."""
