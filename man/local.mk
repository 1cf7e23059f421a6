# What is built in man/.
