package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
)

func pipe(args []string) error {
	flags := flag.NewFlagSet("pipe", flag.ExitOnError)
	listen := flags.String("listen", "", "address")
	to := flags.String("to", "", "address")
	dir := flags.String("cert", "", "directory of the certificate")
	identity := flags.String("identity", "", "expected of the other end")
	flags.Parse(args)
	config, err := clientTLS(*dir, *identity)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			t, err := tls.Dial("tcp", *to, config)
			if err != nil {
				return
			}
			defer t.Close()
			go func() {
				io.Copy(t, c)
				t.CloseWrite()
			}()
			io.Copy(c, t)
		}()
	}
}
