// An echo bridge on mautrix's framework for Go: what somebody says in a room comes back from a ghost of theirs.
//
// Arguments: the registration, the server's name, its URL, and the port to listen on.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"

	"maunium.net/go/mautrix/appservice"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

func fail(err error) {
	if err != nil {
		fmt.Println("FAILED", err)
		os.Exit(1)
	}
}

func main() {
	registration, err := appservice.LoadRegistration(os.Args[1])
	fail(err)
	port, err := strconv.ParseUint(os.Args[4], 10, 16)
	fail(err)
	as, err := appservice.CreateFull(appservice.CreateOpts{
		Registration:     registration,
		HomeserverDomain: os.Args[2],
		HomeserverURL:    os.Args[3],
		HostConfig:       appservice.HostConfig{Hostname: "127.0.0.1", Port: uint16(port)},
	})
	fail(err)
	ctx, bot := context.Background(), as.BotIntent()
	events := appservice.NewEventProcessor(as)
	events.On(event.StateMember, func(ctx context.Context, evt *event.Event) {
		if evt.GetStateKey() == string(bot.UserID) && evt.Content.AsMember().Membership == event.MembershipInvite {
			fail(bot.EnsureJoined(ctx, evt.RoomID))
			fmt.Println("JOINED", evt.RoomID)
		}
	})
	events.On(event.EventMessage, func(ctx context.Context, evt *event.Event) {
		local, _, _ := evt.Sender.Parse()
		if strings.HasPrefix(local, "go_") || evt.Sender == bot.UserID {
			return
		}
		ghost := as.Intent(id.NewUserID("go_"+local, as.HomeserverDomain))
		fail(ghost.EnsureRegistered(ctx))
		fail(ghost.SetDisplayName(ctx, "Echo of "+local))
		fail(ghost.EnsureJoined(ctx, evt.RoomID))
		content := map[string]any{"msgtype": "m.text", "body": "echo: " + evt.Content.AsMessage().Body}
		// As if it had been said a moment before.
		sent, err := ghost.SendMassagedMessageEvent(ctx, evt.RoomID, event.EventMessage, content, evt.Timestamp-1000)
		fail(err)
		fail(ghost.MarkRead(ctx, evt.RoomID, evt.ID))
		fmt.Println("ECHOED", sent.EventID)
	})
	events.Start(ctx)
	go as.Start()
	fail(bot.EnsureRegistered(ctx))
	versions, err := bot.Versions(ctx)
	fail(err)
	fmt.Println("VERSIONS", versions.GetLatest())
	who, err := bot.Whoami(ctx)
	fail(err)
	as.Ready = true
	_, err = bot.AppservicePing(ctx, registration.ID, "meow")
	fail(err)
	fmt.Println("READY", who.UserID)
	http.DefaultClient.CloseIdleConnections()
	select {}
}
