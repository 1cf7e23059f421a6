# What is built in tests/.
