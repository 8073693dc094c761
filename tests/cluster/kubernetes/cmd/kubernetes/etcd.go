package main

import (
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
)

// newEtcdCommand is a store of one member. It doesn't wait for the disk: a cluster for tests does not outlive a crash of
// the machine.
func newEtcdCommand() *cobra.Command {
	var folder, client, peer string
	command := &cobra.Command{
		Use:           "etcd",
		Short:         "a store of one member, without synchronous writes",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(*cobra.Command, []string) error {
			return runEtcd(folder, client, peer)
		},
	}
	flags := command.Flags()
	flags.StringVar(&folder, "data-dir", "", "folder of the data")
	flags.StringVar(&client, "listen-client-url", "http://127.0.0.1:2379", "where clients connect")
	flags.StringVar(&peer, "listen-peer-url", "http://127.0.0.1:2380", "where other members would connect")
	if err := command.MarkFlagRequired("data-dir"); err != nil {
		panic(err) // The flag is defined above.
	}
	return command
}

func runEtcd(folder, client, peer string) error {
	clientURL, err := url.Parse(client)
	if err != nil {
		return fmt.Errorf("listen-client-url: %w", err)
	}
	peerURL, err := url.Parse(peer)
	if err != nil {
		return fmt.Errorf("listen-peer-url: %w", err)
	}
	config := embed.NewConfig()
	config.Dir = folder
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{*clientURL}, []url.URL{*clientURL}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{*peerURL}, []url.URL{*peerURL}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.UnsafeNoFsync = true
	config.LogLevel = "warn"

	store, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	defer store.Close()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	select {
	case <-stop:
		return nil
	case err := <-store.Err():
		return err
	}
}
