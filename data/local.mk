# What is built in data/.
