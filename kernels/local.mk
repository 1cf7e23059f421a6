# What is built in kernels/.
