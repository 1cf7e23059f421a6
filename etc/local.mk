dist_models_DATA += \
	etc/models/llama-tiny.ini etc/models/llama-100m.ini etc/models/tinyllama-1.1b.ini \
	etc/models/llama-2-7b.ini etc/models/llama-2-13b.ini etc/models/llama-2-70b.ini \
	etc/models/codellama-7b.ini etc/models/codellama-13b.ini etc/models/codellama-34b.ini

# For the site to look at, and to link or copy to where its Slurm reads them: mtllm(8).
plugstackdir = $(pkgdatadir)/plugstack.conf.d
dist_plugstack_DATA = etc/plugstack.conf.d/mtllm.conf
dist_pkgdata_DATA = etc/cli_filter.lua

# The site's own settings outlive an upgrade.
EXTRA_DIST += etc/mtllm.conf
install-data-local:
	$(MKDIR_P) '$(DESTDIR)$(confdir)'
	test -e '$(DESTDIR)$(confdir)/mtllm.conf' || \
		$(INSTALL_DATA) '$(srcdir)/etc/mtllm.conf' '$(DESTDIR)$(confdir)/mtllm.conf'
uninstall-local:
	! cmp -s '$(srcdir)/etc/mtllm.conf' '$(DESTDIR)$(confdir)/mtllm.conf' || \
		rm -f '$(DESTDIR)$(confdir)/mtllm.conf'
