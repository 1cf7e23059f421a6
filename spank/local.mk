# What is built in spank/.
