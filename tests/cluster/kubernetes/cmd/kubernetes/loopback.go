package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
)

// newLoopbackCommand brings the loopback interface of a new network namespace up, and gives it further addresses. With
// the address of the service `kubernetes` among them, pods reach an API server that listens on it without kube-proxy.
func newLoopbackCommand() *cobra.Command {
	return &cobra.Command{
		Use:           "loopback [ADDRESS/PREFIX ...]",
		Short:         "bring the loopback interface up, with further addresses",
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(_ *cobra.Command, addresses []string) error {
			return raiseLoopback(addresses)
		},
	}
}

func raiseLoopback(addresses []string) error {
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	if err := netlink.LinkSetUp(loopback); err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	for _, text := range addresses {
		address, err := netlink.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("address %q: allowed is one such as 10.96.0.1/32: %w", text, err)
		}
		if err := netlink.AddrReplace(loopback, address); err != nil {
			return fmt.Errorf("address %s: %w", text, err)
		}
	}
	return nil
}
